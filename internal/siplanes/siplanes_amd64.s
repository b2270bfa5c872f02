#include "textflag.h"

// Of eight messages, Y0 to Y3 are v0 to v3 of the first four, Y4 to Y7 those of the others. Y8 and Y9 are for ROUND.

DATA turn16<>+0(SB)/8, $0x0504030201000706
DATA turn16<>+8(SB)/8, $0x0d0c0b0a09080f0e
DATA turn16<>+16(SB)/8, $0x0504030201000706
DATA turn16<>+24(SB)/8, $0x0d0c0b0a09080f0e
GLOBL turn16<>(SB), RODATA|NOPTR, $32

#define LOAD \
	VMOVDQU 0(DI), Y0   \
	VMOVDQU 32(DI), Y4  \
	VMOVDQU 64(DI), Y1  \
	VMOVDQU 96(DI), Y5  \
	VMOVDQU 128(DI), Y2 \
	VMOVDQU 160(DI), Y6 \
	VMOVDQU 192(DI), Y3 \
	VMOVDQU 224(DI), Y7

#define STORE \
	VMOVDQU Y0, 0(DI)   \
	VMOVDQU Y4, 32(DI)  \
	VMOVDQU Y1, 64(DI)  \
	VMOVDQU Y5, 96(DI)  \
	VMOVDQU Y2, 128(DI) \
	VMOVDQU Y6, 160(DI) \
	VMOVDQU Y3, 192(DI) \
	VMOVDQU Y7, 224(DI)

// ABSORB takes in the words at SI.
#define ABSORB \
	VPXOR 0(SI), Y3, Y3  \
	VPXOR 32(SI), Y7, Y7 \
	ROUND                \
	ROUND                \
	VPXOR 0(SI), Y0, Y0  \
	VPXOR 32(SI), Y4, Y4

// SUM makes hashes, to be at DX, of messages that end with the word in R8.
#define SUM \
	VMOVQ R8, X10          \
	VPBROADCASTQ X10, Y10  \
	MOVQ $0xff, R9         \
	VMOVQ R9, X11          \
	VPBROADCASTQ X11, Y11  \
	VPXOR Y10, Y3, Y3      \
	VPXOR Y10, Y7, Y7      \
	ROUND                  \
	ROUND                  \
	VPXOR Y10, Y0, Y0      \
	VPXOR Y10, Y4, Y4      \
	VPXOR Y11, Y2, Y2      \
	VPXOR Y11, Y6, Y6      \
	ROUND                  \
	ROUND                  \
	ROUND                  \
	ROUND                  \
	VPXOR Y1, Y0, Y0       \
	VPXOR Y5, Y4, Y4       \
	VPXOR Y3, Y2, Y2       \
	VPXOR Y7, Y6, Y6       \
	VPXOR Y2, Y0, Y0       \
	VPXOR Y6, Y4, Y4       \
	VMOVDQU Y0, 0(DX)      \
	VMOVDQU Y4, 32(DX)

// TURN rotates a and b to the left, where there is no instruction for it.
#define TURN(n, a, b) \
	VPSLLQ $n, a, Y8      \
	VPSLLQ $n, b, Y9      \
	VPSRLQ $(64-n), a, a  \
	VPSRLQ $(64-n), b, b  \
	VPXOR Y8, a, a        \
	VPXOR Y9, b, b

// ROUND is a SipRound.
#define ROUND \
	VPADDQ Y1, Y0, Y0     \
	VPADDQ Y5, Y4, Y4     \
	TURN(13, Y1, Y5)      \
	VPXOR Y0, Y1, Y1      \
	VPXOR Y4, Y5, Y5      \
	VPSHUFD $0xb1, Y0, Y0 \
	VPSHUFD $0xb1, Y4, Y4 \
	VPADDQ Y3, Y2, Y2     \
	VPADDQ Y7, Y6, Y6     \
	VPSHUFB Y12, Y3, Y3   \
	VPSHUFB Y12, Y7, Y7   \
	VPXOR Y2, Y3, Y3      \
	VPXOR Y6, Y7, Y7      \
	VPADDQ Y3, Y0, Y0     \
	VPADDQ Y7, Y4, Y4     \
	TURN(21, Y3, Y7)      \
	VPXOR Y0, Y3, Y3      \
	VPXOR Y4, Y7, Y7      \
	VPADDQ Y1, Y2, Y2     \
	VPADDQ Y5, Y6, Y6     \
	TURN(17, Y1, Y5)      \
	VPXOR Y2, Y1, Y1      \
	VPXOR Y6, Y5, Y5      \
	VPSHUFD $0xb1, Y2, Y2 \
	VPSHUFD $0xb1, Y6, Y6

// ARGUMENTS of digits: the words at DI, SI behind the last of CX elements, the width in X2, a digit's bits in R9.
#define ARGUMENTS \
	MOVQ words+0(FP), DI     \
	MOVQ shifted+8(FP), SI   \
	MOVQ elements+16(FP), CX \
	MOVQ width+24(FP), R8    \
	VMOVQ R8, X2             \
	MOVQ $15, R9             \
	MOVQ CX, AX              \
	SHLQ $6, AX              \
	ADDQ AX, SI

// func absorbAVX2(s *State, words *Words)
TEXT ·absorbAVX2(SB), NOSPLIT, $0-16
	MOVQ s+0(FP), DI
	MOVQ words+8(FP), SI
	VMOVDQU turn16<>(SB), Y12
	LOAD
	ABSORB
	STORE
	VZEROUPPER
	RET

// func sumAVX2(s *State, words *Words, end uint64, sums *Words)
TEXT ·sumAVX2(SB), NOSPLIT, $0-32
	MOVQ s+0(FP), DI
	MOVQ words+8(FP), SI
	MOVQ end+16(FP), R8
	MOVQ sums+24(FP), DX
	VMOVDQU turn16<>(SB), Y12
	LOAD
	ABSORB
	STORE
	SUM
	VZEROUPPER
	RET

// With AVX-512, Z0 to Z3 are v0 to v3 of all eight.

#define TURN8(n, a, sum) \
	VPROLQ $n, a, a   \
	VPXORQ sum, a, a

#define ROUND8 \
	VPADDQ Z1, Z0, Z0  \
	TURN8(13, Z1, Z0)  \
	VPROLQ $32, Z0, Z0 \
	VPADDQ Z3, Z2, Z2  \
	TURN8(16, Z3, Z2)  \
	VPADDQ Z3, Z0, Z0  \
	TURN8(21, Z3, Z0)  \
	VPADDQ Z1, Z2, Z2  \
	TURN8(17, Z1, Z2)  \
	VPROLQ $32, Z2, Z2

#define ABSORB8 \
	VMOVDQU64 0(DI), Z0   \
	VMOVDQU64 64(DI), Z1  \
	VMOVDQU64 128(DI), Z2 \
	VMOVDQU64 192(DI), Z3 \
	VMOVDQU64 0(SI), Z4   \
	VPXORQ Z4, Z3, Z3     \
	ROUND8                \
	ROUND8                \
	VPXORQ Z4, Z0, Z0     \
	VMOVDQU64 Z0, 0(DI)   \
	VMOVDQU64 Z1, 64(DI)  \
	VMOVDQU64 Z2, 128(DI) \
	VMOVDQU64 Z3, 192(DI)

// func absorbAVX512(s *State, words *Words)
TEXT ·absorbAVX512(SB), NOSPLIT, $0-16
	MOVQ s+0(FP), DI
	MOVQ words+8(FP), SI
	ABSORB8
	VZEROUPPER
	RET

// func sumAVX512(s *State, words *Words, end uint64, sums *Words)
TEXT ·sumAVX512(SB), NOSPLIT, $0-32
	MOVQ s+0(FP), DI
	MOVQ words+8(FP), SI
	MOVQ sums+24(FP), DX
	ABSORB8
	VPBROADCASTQ end+16(FP), Z4
	MOVQ $0xff, R9
	VPBROADCASTQ R9, Z5
	VPXORQ Z4, Z3, Z3
	ROUND8
	ROUND8
	VPXORQ Z4, Z0, Z0
	VPXORQ Z5, Z2, Z2
	ROUND8
	ROUND8
	ROUND8
	ROUND8
	VPXORQ Z1, Z0, Z0
	VPXORQ Z3, Z2, Z2
	VPXORQ Z2, Z0, Z0
	VMOVDQU64 Z0, 0(DX)
	VZEROUPPER
	RET

// func digitsAVX512(words *Words, shifted *Words, elements int, width uint64)
TEXT ·digitsAVX512(SB), NOSPLIT, $0-32
	ARGUMENTS
	VPBROADCASTQ R9, Z3
	VPXORQ Z0, Z0, Z0

each8:
	SUBQ $64, SI
	VPSLLQ $4, Z0, Z0
	VMOVDQU64 0(SI), Z4
	VPSRLQ X2, Z4, Z4
	VPANDQ Z3, Z4, Z4
	VPORQ Z4, Z0, Z0
	DECQ CX
	JNZ each8

	VMOVDQU64 Z0, 0(DI)
	VZEROUPPER
	RET

// func digitsAVX2(words *Words, shifted *Words, elements int, width uint64)
TEXT ·digitsAVX2(SB), NOSPLIT, $0-32
	ARGUMENTS
	VMOVQ R9, X3
	VPBROADCASTQ X3, Y3
	VPXOR Y0, Y0, Y0
	VPXOR Y1, Y1, Y1

each:
	SUBQ $64, SI
	VPSLLQ $4, Y0, Y0
	VPSLLQ $4, Y1, Y1
	VMOVDQU 0(SI), Y4
	VMOVDQU 32(SI), Y5
	VPSRLQ X2, Y4, Y4
	VPSRLQ X2, Y5, Y5
	VPAND Y3, Y4, Y4
	VPAND Y3, Y5, Y5
	VPOR Y4, Y0, Y0
	VPOR Y5, Y1, Y1
	DECQ CX
	JNZ each

	VMOVDQU Y0, 0(DI)
	VMOVDQU Y1, 32(DI)
	VZEROUPPER
	RET
