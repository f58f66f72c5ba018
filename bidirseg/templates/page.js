// Two pictures beside each other become one with a slider; without scripts they stay beside each other.
for (const box of document.querySelectorAll('.slider')) {
  const range = box.querySelector('input');
  const move = () => box.style.setProperty('--cut', range.value + '%');
  range.addEventListener('input', move);
  box.classList.add('on');
  move();
}
