"""A policy behind a socket: many clients, one batch. The protocol is described in vla/wire.py."""
