"""The server: steering over an OpenAI-compatible API."""
