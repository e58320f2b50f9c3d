"""Everything that knows AMQP."""
