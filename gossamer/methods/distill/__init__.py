"""Methods that teach a network by another one."""
