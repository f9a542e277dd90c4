//! fewbits-data
