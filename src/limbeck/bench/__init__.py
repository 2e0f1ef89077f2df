"""The bench: ready-made worlds, trials of each paper's claim, studies, speed."""
