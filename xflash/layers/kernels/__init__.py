"""Pure tensor functions, a slow obvious definition beside each fast one."""
