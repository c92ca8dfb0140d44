"""Influence functions, with four ways to apply the inverse Hessian."""
