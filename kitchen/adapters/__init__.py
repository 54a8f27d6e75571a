"""Floor 4, twins of the ports: classes that fulfil what `kitchen.ports` asks for."""
