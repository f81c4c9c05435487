"""The file: its layout, its manifest, how it is written and checked."""
