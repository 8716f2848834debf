"""What Weights & Biases is told."""
