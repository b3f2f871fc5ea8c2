"""Builds requests and reads responses. The blocking and the asyncio clients share it."""
