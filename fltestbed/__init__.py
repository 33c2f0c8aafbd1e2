"""fltestbed: federated-learning testbeds on real, heterogeneous machines."""
