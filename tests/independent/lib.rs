//! Nothing: this package holds the tests beside it.
