"""What is exported: where a module comes from and what is asked of it before anything is traced."""
