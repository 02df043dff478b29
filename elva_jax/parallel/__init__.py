"""The device mesh, sharding rules, ZeRO, and the start of several processes."""
