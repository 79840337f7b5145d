"""Devices that measure and run for others: the program on a device, and how a build machine finds and uses them."""
