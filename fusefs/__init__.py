"""Vdisks as files: from the kernel's requests to the owner's head."""
