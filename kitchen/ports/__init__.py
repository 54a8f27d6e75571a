"""What kitchen needs from the world: Protocols, and the plain values they speak in.

Rules:

1. Nothing here does anything. A Protocol may be read without NumPy, torch or a network.
2. A port and the adapter that fulfils it carry the same file name.
"""
