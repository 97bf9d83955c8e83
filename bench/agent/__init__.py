"""What is copied to a device and run there: standard library, numpy and the runtime. Python >= 3.8."""
