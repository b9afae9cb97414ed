"""Trust: what a publisher has signed, told from what a mirror serves, by The Update Framework (docs/threats.md).

Pure: metadata comes from a function that is passed in, the time is an argument, nothing is sent anywhere. `chain` alone
needs python-tuf, which takes 0.05 to 0.1 s to import; whoever finds nothing new does not.
"""
