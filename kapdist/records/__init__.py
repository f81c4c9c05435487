"""What lies on disk, declared once, for whoever writes it and whoever reads it; imports no torch."""
