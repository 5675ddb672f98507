//! What the verifier sees.

use recovery_tests::bare::Bare;

use crate::figures;

pub(crate) fn run(bare: &Bare) {
    println!("programs on this kernel");
    println!("  hook         | instructions the verifier went through | bytes of BPF code | of machine code");
    for program in figures(bare).1 {
        println!(
            "  {:<12} | {:>38} | {:>17} | {:>15}",
            program.hook, program.verified_instructions, program.translated_bytes, program.compiled_bytes
        );
    }
}
