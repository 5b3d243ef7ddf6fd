/* SPDX-License-Identifier: MIT */
/*
 * void coro_switch(void **save, void *load)
 *
 * Pushes what the ABI says a callee must keep, swaps stack pointers, pops the same from the other
 * stack. A fresh stack (coro_asm.c) looks as if it had been left here with coro_start as the
 * return address.
 */
	.text
	.globl	coro_switch
	.hidden	coro_switch
	.type	coro_switch, %function
	.globl	coro_start
	.hidden	coro_start
	.type	coro_start, %function

#if defined(__x86_64__)

	.p2align 4
coro_switch:
	pushq	%rbp
	pushq	%rbx
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rsp, (%rdi)
	movq	%rsi, %rsp
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbx
	popq	%rbp
	ret
	.size	coro_switch, . - coro_switch

	/* entry in rbx, its argument in r12 */
coro_start:
	.cfi_startproc
	.cfi_undefined rip
	movq	%r12, %rdi
	xorl	%ebp, %ebp
	call	*%rbx
	ud2
	.cfi_endproc
	.size	coro_start, . - coro_start

#elif defined(__aarch64__)

	.p2align 4
coro_switch:
	sub	sp, sp, #160
	stp	x19, x20, [sp, #0]
	stp	x21, x22, [sp, #16]
	stp	x23, x24, [sp, #32]
	stp	x25, x26, [sp, #48]
	stp	x27, x28, [sp, #64]
	stp	x29, x30, [sp, #80]
	stp	d8, d9, [sp, #96]
	stp	d10, d11, [sp, #112]
	stp	d12, d13, [sp, #128]
	stp	d14, d15, [sp, #144]
	mov	x2, sp
	str	x2, [x0]
	mov	sp, x1
	ldp	x19, x20, [sp, #0]
	ldp	x21, x22, [sp, #16]
	ldp	x23, x24, [sp, #32]
	ldp	x25, x26, [sp, #48]
	ldp	x27, x28, [sp, #64]
	ldp	x29, x30, [sp, #80]
	ldp	d8, d9, [sp, #96]
	ldp	d10, d11, [sp, #112]
	ldp	d12, d13, [sp, #128]
	ldp	d14, d15, [sp, #144]
	add	sp, sp, #160
	ret
	.size	coro_switch, . - coro_switch

	/* entry in x19, its argument in x20 */
coro_start:
	.cfi_startproc
	.cfi_undefined x30
	mov	x0, x20
	mov	x29, xzr
	blr	x19
	brk	#1
	.cfi_endproc
	.size	coro_start, . - coro_start

#endif
	.section .note.GNU-stack, "", %progbits
