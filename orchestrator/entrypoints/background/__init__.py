"""What runs beside HTTP: the scheduler, the log followers, and the process that runs them."""
