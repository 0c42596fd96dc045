"""What is trained before it is compressed: architectures and learning rates."""
