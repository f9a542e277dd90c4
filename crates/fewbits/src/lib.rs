//! fewbits
