"""The demo: four worker processes train a small network on real handwritten digits."""
