"""Methods that replace a layer by a chain of cheaper ordinary layers: low-rank factorization."""
