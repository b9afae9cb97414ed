"""Measurements, one module a question; see README.md. Run: python -m benchmarks [--smoke] [NAME...]"""
