//! Keys and values of the kernel maps.
