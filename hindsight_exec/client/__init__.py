"""The Hindsight HTTP API, and the event loop that carries its requests."""
