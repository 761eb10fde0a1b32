//! A guest of 60 bytes: says `TOY-UP` on its serial port, then counts, says the next letter of the alphabet, and so on. It
//! needs no interrupts and no memory of its own, so that a KVM in software runs it too, instruction by instruction.

/// Where it is loaded and begins.
const ADDRESS: u64 = 16 << 20;
/// Where it is in the file.
const OFFSET: u64 = 0x1000;

/// What it says first.
pub(crate) const UP: &str = "TOY-UP\n";

/// Between two letters: some 50 ms where KVM is in software, below 1 ms where it is not.
const COUNT: u32 = 60_000;

/// A 64-bit ELF file (elf(5)) with one segment.
pub(crate) fn elf() -> Vec<u8> {
    let code = code();
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    file.extend([0; 8]);
    file.extend([2, 0, 62, 0]); // an executable for x86-64
    file.extend(1_u32.to_le_bytes());
    file.extend(ADDRESS.to_le_bytes()); // its entry
    file.extend(64_u64.to_le_bytes()); // where the segments are described
    file.extend([0; 12]); // no sections, no flags
    for half in [64_u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes()); // to be loaded
    file.extend(7_u32.to_le_bytes()); // readable, writable, executable
    for word in [OFFSET, ADDRESS, ADDRESS, code.len() as u64, code.len() as u64, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.resize(0x1000, 0);
    file.extend(code);
    file
}

fn code() -> Vec<u8> {
    let out = [0x66, 0xba, 0xf8, 0x03, 0xee]; // mov dx, 0x3f8; out dx, al
    let mut code = vec![0x48, 0x8d, 0x35, 46, 0, 0, 0]; // lea rsi, [text]
    code.extend([0xac, 0x84, 0xc0, 0x74, 7]); // 7: lodsb; test al, al; jz 19
    code.extend(out);
    code.extend([0xeb, 0xf4]); // jmp 7
    code.extend([0xb3, b'a']); // 19: mov bl, 'a'
    code.push(0xb9); // 21: mov ecx, COUNT
    code.extend(COUNT.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc]); // 26: dec ecx; jnz 26
    code.extend([0x88, 0xd8]); // mov al, bl
    code.extend(out);
    code.extend([0xfe, 0xc3, 0x80, 0xfb, b'z' + 1, 0x75, 0xe9]); // inc bl; cmp bl, 'z' + 1; jne 21
    code.extend([0xb0, b'\n']); // mov al, '\n'
    code.extend(out);
    code.extend([0xeb, 0xde]); // jmp 19
    code.extend(UP.as_bytes());
    code.push(0);
    code
}
