"""Gristmill's services. Dependencies point one way: runtime, then inference, then each service."""
