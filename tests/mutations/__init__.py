"""Models that are broken on purpose: imported, and where they are taken built and run, each in a process of its own."""
