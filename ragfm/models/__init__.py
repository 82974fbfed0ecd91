"""Model files: finding, checking, describing and downloading them, and the hardware they run on."""
