"""Reading a beton: order, decoding, pixels, the way to the device."""
