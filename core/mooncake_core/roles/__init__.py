"""The processes: master, gateway, store, prefill, decode, and the supervisor that starts them on one host.

Each role module has `async def run(context: RoleContext) -> None`, which serves until `context.stop` is set.
"""
