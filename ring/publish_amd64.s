//go:build !race

#include "textflag.h"

// func publish(slot unsafe.Pointer, payload *uint64, words uintptr, busy, lenCRC uint64, position unsafe.Pointer)
TEXT ·publish(SB), NOSPLIT, $0-48
	MOVQ slot+0(FP), DI
	MOVQ payload+8(FP), SI
	MOVQ words+16(FP), CX
	MOVQ busy+24(FP), AX
	MOVQ lenCRC+32(FP), BX
	MOVQ position+40(FP), DX

	MOVQ AX, 0(DI)            // 2n+1: not to be read
	MOVQ BX, 8(DI)
	LEAQ 16(DI), R8
	CMPQ CX, $8
	JB   rest

eight:
	MOVOU 0(SI), X0
	MOVOU 16(SI), X1
	MOVOU 32(SI), X2
	MOVOU 48(SI), X3
	MOVOU X0, 0(R8)
	MOVOU X1, 16(R8)
	MOVOU X2, 32(R8)
	MOVOU X3, 48(R8)
	ADDQ  $64, SI
	ADDQ  $64, R8
	SUBQ  $8, CX
	CMPQ  CX, $8
	JAE   eight

rest:
	TESTQ CX, CX
	JZ    done

one:
	MOVQ 0(SI), BX
	MOVQ BX, 0(R8)
	ADDQ $8, SI
	ADDQ $8, R8
	DECQ CX
	JNZ  one

done:
	INCQ AX
	MOVQ AX, 0(DI)            // 2n+2: complete
	SHRQ $1, AX
	MOVQ AX, 0(DX)            // n+1 records published
	RET

// func publishFused(slot unsafe.Pointer, payload, keys *uint64, words uintptr, busy, length uint64, state uint32, position unsafe.Pointer)
//
// One pass copies the payload and folds it: every word is multiplied, carry-less,
// with the key of its place, which brings it to 96 bits whose sum is congruent
// to the message; three more multiplications reduce that to the CRC. All products
// are independent of each other, unlike those of a CRC that folds as it goes.
//
// Loads are of 16 bytes and never overlap: the payload has usually just been
// written by stores of 8, and loads of 32 then took seven times as long (measured).
TEXT ·publishFused(SB), NOSPLIT, $0-64
	MOVQ slot+0(FP), DI
	MOVQ payload+8(FP), SI
	MOVQ keys+16(FP), DX
	MOVQ words+24(FP), CX
	MOVQ busy+32(FP), AX
	MOVQ AX, 0(DI)            // 2n+1: not to be read
	MOVL state+48(FP), BX
	VMOVQ BX, X8              // goes into the first four bytes
	VPXOR X6, X6, X6
	VPXOR X7, X7, X7
	LEAQ 16(DI), R8
	SUBQ $4, CX
	JB   pair

four:
	VMOVDQU (SI), X0
	VMOVDQU 16(SI), X2
	VMOVDQU X0, (R8)
	VMOVDQU X2, 16(R8)
	VMOVDQU (DX), Y1
	VINSERTI128 $1, X2, Y0, Y0
	VPXOR   Y8, Y0, Y0
	VPXOR   X8, X8, X8
	VPCLMULQDQ $0x00, Y1, Y0, Y2
	VPCLMULQDQ $0x11, Y1, Y0, Y0
	VPXOR   Y2, Y6, Y6
	VPXOR   Y0, Y7, Y7
	ADDQ    $32, SI
	ADDQ    $32, DX
	ADDQ    $32, R8
	SUBQ    $4, CX
	JAE     four

pair:
	VPXOR Y7, Y6, Y6
	VEXTRACTI128 $1, Y6, X7
	VPXOR X7, X6, X6
	TESTQ $2, CX
	JZ    single
	VMOVDQU (SI), X0
	VMOVDQU (DX), X1
	VMOVDQU X0, (R8)
	VPXOR   X8, X0, X0
	VPXOR   X8, X8, X8
	VPCLMULQDQ $0x00, X1, X0, X2
	VPCLMULQDQ $0x11, X1, X0, X0
	VPXOR   X2, X6, X6
	VPXOR   X0, X6, X6
	ADDQ    $16, SI
	ADDQ    $16, DX
	ADDQ    $16, R8

single:
	TESTQ $1, CX
	JZ    reduce
	VMOVQ (SI), X0
	VMOVQ (DX), X1
	VMOVQ X0, (R8)
	VPXOR X8, X0, X0
	VPCLMULQDQ $0x00, X1, X0, X0
	VPXOR X0, X6, X6

reduce:
	MOVQ  $0xffffffff, BX
	VMOVQ BX, X3
	MOVQ  $0x163cd6124, BX    // x^64 mod P: 96 bits to 64
	VMOVQ BX, X1
	VPAND X3, X6, X0
	VPSRLDQ $4, X6, X6
	VPCLMULQDQ $0x00, X1, X0, X0
	VPXOR X0, X6, X6
	MOVQ  $0x1f7011641, BX    // Barrett: floor(x^64 / P), then P
	VMOVQ BX, X1
	MOVQ  $0x1db710641, BX
	VMOVQ BX, X2
	VPAND X3, X6, X0
	VPCLMULQDQ $0x00, X1, X0, X0
	VPAND X3, X0, X0
	VPCLMULQDQ $0x00, X2, X0, X0
	VPXOR X6, X0, X0
	VPEXTRD $1, X0, BX
	VZEROUPPER
	NOTL  BX
	SHLQ  $32, BX
	ORQ   length+40(FP), BX
	MOVQ  BX, 8(DI)
	MOVQ  position+56(FP), DX
	INCQ  AX
	MOVQ  AX, 0(DI)           // 2n+2: complete
	SHRQ  $1, AX
	MOVQ  AX, 0(DX)           // n+1 records published
	RET
