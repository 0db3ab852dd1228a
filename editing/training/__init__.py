"""What every training of an editor shares: checkpoints, what came of it, its figure and its command."""
