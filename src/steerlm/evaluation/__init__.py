"""Measuring: does the policy steer, does the attribute model agree with people."""
