//! Every opcode of pickle protocols 0 to 5, so that the machine's `match` has to decide on each.
//!
//! Source: `pickletools.opcodes` of CPython 3.12.

macro_rules! opcodes {
    ($($variant:ident $byte:literal $name:literal;)*) => {
        /// A pickle opcode.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Op { $($variant,)* }

        impl Op {
            /// The opcode with this byte; `None` for a byte that no protocol defines.
            pub(super) fn from_byte(byte: u8) -> Option<Op> {
                match byte { $($byte => Some(Op::$variant),)* _ => None }
            }

            /// Its name in `pickletools`.
            pub(super) fn name(self) -> &'static str {
                match self { $(Op::$variant => $name,)* }
            }
        }
    };
}

opcodes! {
    // Protocols 0 and 1
    Mark           b'(' "MARK";
    Stop           b'.' "STOP";
    Pop            b'0' "POP";
    PopMark        b'1' "POP_MARK";
    Dup            b'2' "DUP";
    Float          b'F' "FLOAT";
    Int            b'I' "INT";
    BinInt         b'J' "BININT";
    BinInt1        b'K' "BININT1";
    Long           b'L' "LONG";
    BinInt2        b'M' "BININT2";
    None           b'N' "NONE";
    PersId         b'P' "PERSID";
    BinPersId      b'Q' "BINPERSID";
    Reduce         b'R' "REDUCE";
    String         b'S' "STRING";
    BinString      b'T' "BINSTRING";
    ShortBinString b'U' "SHORT_BINSTRING";
    Unicode        b'V' "UNICODE";
    BinUnicode     b'X' "BINUNICODE";
    Append         b'a' "APPEND";
    Build          b'b' "BUILD";
    Global         b'c' "GLOBAL";
    Dict           b'd' "DICT";
    EmptyDict      b'}' "EMPTY_DICT";
    Appends        b'e' "APPENDS";
    Get            b'g' "GET";
    BinGet         b'h' "BINGET";
    Inst           b'i' "INST";
    LongBinGet     b'j' "LONG_BINGET";
    List           b'l' "LIST";
    EmptyList      b']' "EMPTY_LIST";
    Obj            b'o' "OBJ";
    Put            b'p' "PUT";
    BinPut         b'q' "BINPUT";
    LongBinPut     b'r' "LONG_BINPUT";
    SetItem        b's' "SETITEM";
    Tuple          b't' "TUPLE";
    EmptyTuple     b')' "EMPTY_TUPLE";
    SetItems       b'u' "SETITEMS";
    BinFloat       b'G' "BINFLOAT";
    // Protocol 2
    Proto          0x80 "PROTO";
    NewObj         0x81 "NEWOBJ";
    Ext1           0x82 "EXT1";
    Ext2           0x83 "EXT2";
    Ext4           0x84 "EXT4";
    Tuple1         0x85 "TUPLE1";
    Tuple2         0x86 "TUPLE2";
    Tuple3         0x87 "TUPLE3";
    NewTrue        0x88 "NEWTRUE";
    NewFalse       0x89 "NEWFALSE";
    Long1          0x8a "LONG1";
    Long4          0x8b "LONG4";
    // Protocol 3
    BinBytes       b'B' "BINBYTES";
    ShortBinBytes  b'C' "SHORT_BINBYTES";
    // Protocol 4
    ShortBinUnicode 0x8c "SHORT_BINUNICODE";
    BinUnicode8    0x8d "BINUNICODE8";
    BinBytes8      0x8e "BINBYTES8";
    EmptySet       0x8f "EMPTY_SET";
    AddItems       0x90 "ADDITEMS";
    FrozenSet      0x91 "FROZENSET";
    NewObjEx       0x92 "NEWOBJ_EX";
    StackGlobal    0x93 "STACK_GLOBAL";
    Memoize        0x94 "MEMOIZE";
    Frame          0x95 "FRAME";
    // Protocol 5
    ByteArray8     0x96 "BYTEARRAY8";
    NextBuffer     0x97 "NEXT_BUFFER";
    ReadOnlyBuffer 0x98 "READONLY_BUFFER";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_opcode_once() {
        let ops: Vec<Op> = (0..=255).filter_map(Op::from_byte).collect();
        assert_eq!(ops.len(), 68, "as many as pickletools.opcodes has in CPython 3.12");
        let mut names: Vec<_> = ops.iter().map(|op| op.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 68);
        assert_eq!(Op::from_byte(b'R'), Some(Op::Reduce));
        assert_eq!(Op::from_byte(0x93), Some(Op::StackGlobal));
        assert_eq!(Op::from_byte(0x99), None);
    }
}
