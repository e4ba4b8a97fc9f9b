"""Every picture; the only room with matplotlib."""
