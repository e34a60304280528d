from .task import STATE, main

STATE["unit"] = "nats"

main()
