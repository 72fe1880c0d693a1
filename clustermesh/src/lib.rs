//! Federation, and the command line.
