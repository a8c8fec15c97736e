// The cells by number, for what learns at run time which one is meant.
#pragma once

namespace fusedrnn {

enum CellKind { kLstm, kGru, kRnnTanh, kRnnRelu };

}  // namespace fusedrnn
