"""A federated round: six workers push the gradients of GPT-2 large, and pull the mean step.

suite.py     the rounds, their time, and the server's memory
worker.py    one of the workers, a program of its own
gradient.py  gradients whose mean is exact in float32, so that it can be checked to the bit
"""
