"""What teachers wrote: the store, published collections, and controls that change one thing in a text."""
