"""What the benchmark `gpu` is made of: its parts, each in a process of its own, and the page of what they found."""
