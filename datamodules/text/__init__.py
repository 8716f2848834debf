"""What can be read off a text alone: sentences, numbers, expressions, thoughts; text of unknown origin made safe."""
