"""What every long run needs: memory, several processes, checkpoints, progress, whole files."""
