//! fewbits-quant
